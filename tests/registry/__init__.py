"""Tests of masm.registry and of the gate at work."""
