"""[evidence] The comparison of a mixture of experts with dense networks."""
