"""Documentation of the action plugin of the same name."""

DOCUMENTATION = """
module: show_table
author: clawDeploy contributors (@clawdeploy)
short_description: Show rows as a table on the terminal
version_added: 0.1.0
description:
  - Shows what a playbook has found, as a table for people.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
  - clawdeploy.fleet.attributes.controller
options:
  title:
    description: What stands above the table.
    type: str
    required: true
  columns:
    description: Names of the columns.
    type: list
    elements: str
    required: true
  rows:
    description: The rows, each a list of one text for each column.
    type: list
    elements: list
    required: true
  result:
    description: The same for programs.
    type: dict
    default: {}
  result_file:
    description:
      - File on the controller that gets O(result) as JSON (0600). Nothing is written when empty, or in check
        mode.
    type: path
    default: ""
"""

EXAMPLES = """
- name: Show the bots
  clawdeploy.fleet.show_table:
    title: Bots of vps1
    columns: [Bot, Balance]
    rows: [[support-bot, $5.00]]
"""

RETURN = """
"""
