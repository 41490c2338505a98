"""Our own job API: `/api/v1`. Knows its field names and nothing of scheduling or rendering."""
