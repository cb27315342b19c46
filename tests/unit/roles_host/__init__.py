"""Tests of the roles that prepare the host itself: base, docker, firewall."""
