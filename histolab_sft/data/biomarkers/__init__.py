"""From slides, gene expression and clinical tables to the biomarker records of ImmunoPath."""
