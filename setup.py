"""The one thing pyproject.toml cannot say: an extension that may be missing where there is no compiler."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("recovery_box._lanes", ["recovery_box/_lanes.c"], optional=True)])
