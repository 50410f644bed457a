"""Row files to checked splits, overlap between row sets, and which rows can serve which method. No torch.

Import what you need from its module: `import_data`, `splits`, `overlap`, `projections`, `fingerprint`.
"""
