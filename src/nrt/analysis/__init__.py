"""Analysis of run folders: statistics, tables, plots and the report. Imports no torch."""
