"""A shim for tools that call setup.py: all settings are in setup.cfg."""

from setuptools import setup

setup()
