"""What must be true again once the VPS has been restarted."""
