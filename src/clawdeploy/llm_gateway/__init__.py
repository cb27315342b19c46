"""The LLM gateway: the one process on the VPS that holds the OpenRouter key.

Bots speak OpenRouter's API to it. It knows a bot by its own LLM key *and* its own subnet, rebuilds every
request from an allow-list of fields with the operator's fixed model, and passes the answer back byte by byte.
"""
