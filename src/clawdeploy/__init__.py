"""The host side of clawDeploy: the registry of bots and everything derived from it on one VPS."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("clawdeploy")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+source"
