"""PAI-EAS: the queue service of an asynchronous service, and what its webui adds to A1111's calls.

::

    HTTP → views  ┐                                  workers → requests (input frame → sdapi call → sink frame)
    WebSocket → websocket ┴→ wire → access → queues ─┘
"""
