"""From files to networks in memory."""
