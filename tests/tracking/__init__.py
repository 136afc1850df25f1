"""Tests of masm.tracking."""
