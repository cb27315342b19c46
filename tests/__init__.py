"""Tests, simulators, the simulated internet and the demo of clawDeploy."""
