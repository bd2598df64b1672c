"""The input pipeline, which is the only part of the package that imports TensorFlow. This file does not."""
