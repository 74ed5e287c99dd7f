"""Packaging of catbreeds. The locked environment is in requirements/; `make setup` installs both."""

from setuptools import find_packages, setup

setup(
    name="catbreeds",
    version="0.1.0",
    description="From a folder of cat photos to a breed classifier, trained, gated and served",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["pipeline*", "components*", "serving*"]),
    package_data={"pipeline": ["profiles/*.yaml"], "components": ["templates/*.html.j2"]},
    # Loose on purpose: what is tested together is in requirements/dev.lock.
    install_requires=[
        "tfx>=1.21,<1.22",
        "keras>=3.15",
        "keras-tuner>=1.4.8",
        "tensorflow-serving-api",
        "croniter",
        "fastapi",
        "filelock",
        "grpcio",
        "httpx",
        "imagehash",
        "jinja2",
        "kagglehub>=1,<2",
        "kfp-server-api",
        "kubernetes",
        "matplotlib",
        "ml-metadata",
        "pillow",
        "pillow-heif",
        "prometheus-client",
        "pydantic>=2",
        "python-multipart",
        "pyyaml",
        "rich",
        "streamlit",
        "structlog",
        "typer",
        "uvicorn",
    ],
    entry_points={"console_scripts": ["catbreeds=pipeline.cli:main"]},
)
