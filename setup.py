"""Everything about the package is said once, in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def requirements(name):
    return cfg.get(name, "").split()


EXTRAS = {extra: requirements(f"{extra}_requirements") for extra in ("notebooks", "diffusers", "dask")}
EXTRAS["dev"] = [*requirements("dev_requirements"), *(name for extra in EXTRAS.values() for name in extra)]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    license="Apache-2.0",
    packages=find_packages(include=["gradcheck", "gradcheck.*"]),
    package_data={
        "gradcheck": ["weights/*/*.safetensors", "weights/*/*.json"],
        "gradcheck.paper": ["*.j2", "*.css", "*.js"],
        "gradcheck.app": ["*.j2", "*.css", "*.js", "known.*"],
    },
    python_requires=f">={cfg['min_python']}",
    install_requires=requirements("requirements"),
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": requirements("console_scripts"),
        "nbdev": [f"gradcheck={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
