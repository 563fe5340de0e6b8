"""How results are shown: statistics over seeds, tables, figures and the progress bar, each written once."""
