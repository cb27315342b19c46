"""What modules of this collection promise, said once."""


class ModuleDocFragment:
    """Documentation fragments."""

    DOCUMENTATION = """
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Returns what has changed, or what would change in C(check_mode), never a secret.
    support: full
  idempotent:
    description: A second run with the same options changes nothing.
    support: full
"""

    READ_ONLY = """
options: {}
attributes:
  diff_mode:
    support: N/A
    details: Changes nothing.
"""

    CONTROLLER = """
options: {}
attributes:
  action:
    description: Has a corresponding action plugin; runs on the controller.
    support: full
"""
