"""Stand-ins for what is on the internet: they follow the documented wire formats, errors included."""
