"""Measures of edits, a file each, and what runs them over a benchmark.

clip.py, dino.py, lpips.py and ssim.py are the field's measures; icons.py are those of the bundled model, which need no
download. PSNR is in images.py. benchmarks.py reads what is edited, runs.py says how, metrics.py what is measured of it,
evaluation.py does it, records.py keeps it, report.py makes the table and the plot of it. Pictures are [1, 3, H, W] with
values in [−1, 1] everywhere.
"""
