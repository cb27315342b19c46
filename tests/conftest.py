"""Shared by all tests: makes the plugins of this checkout importable under their collection name."""

from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

ROOT = Path(__file__).parent.parent

# `from ansible_collections.clawdeploy.fleet.plugins… import …` then works as it does inside Ansible.
init_plugin_loader([str(ROOT / ".collections")])
