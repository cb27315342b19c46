"""The host side of clawDeploy: the registry of bots and everything derived from it on one VPS."""


def version() -> str:
    """Version of the installed package."""
    import importlib.metadata  # costs as much as the rest of a short command

    return importlib.metadata.version("clawdeploy")
