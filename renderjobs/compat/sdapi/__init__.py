"""AUTOMATIC1111's `/sdapi/v1`, as release 1.10.1 speaks it. The only place that knows its field names and error shapes."""
