"""[evidence] Experiments on precision: formats, quantization noise, outliers, accumulation, matmul error."""
