"""Rules: one defect per file; rule.py finds them by their names, hs101_... and so on."""
