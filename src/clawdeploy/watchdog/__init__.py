"""The watchdog: looks at every bot every few seconds and stops by rule what an operator would stop by hand.

``readings`` and ``policy`` are pure; ``sensors`` reads the host, ``service`` puts decisions into effect.
"""
