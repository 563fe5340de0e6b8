"""Experiments on precision: number formats, quantization noise, outliers, accumulation and matmul error."""
