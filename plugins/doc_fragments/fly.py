"""What all modules that talk to Fly.io take, said once."""


class ModuleDocFragment:
    """Documentation fragments."""

    DOCUMENTATION = """
options:
  api_token:
    description: Token of Fly.io that may do this. The environment variable E(FLY_API_TOKEN) if not given.
    type: str
    required: true
  api_url:
    description: Where the Machines API is.
    type: str
    default: https://api.machines.dev
notes:
  - "The API: U(https://docs.machines.dev)."
  - Answers 429 and 5xx are waited out, for as long as Fly.io says, for a minute or two at most.
"""
