"""The stand-in for the NullClaw agent: a small static program and its image, built without a registry."""
