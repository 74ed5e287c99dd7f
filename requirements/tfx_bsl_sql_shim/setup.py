"""A wheel with the one module that tensorflow-data-validation misses in tfx-bsl; see README.md."""

from setuptools import setup

setup(
    name="tfx-bsl-sql-shim",
    version="1.0",
    description="tfx_bsl.arrow.sql_util for tensorflow-data-validation 1.16.1 on tfx-bsl 1.21.0",
    packages=["tfx_bsl.arrow"],
)
