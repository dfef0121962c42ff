"""Engines of the flow pipeline: rows to pictures by trees of denoising steps, or draws on finished samples (forward
process); calibration of noise.

What single steps do lives one room up, in kernels, noise, schedule and solver.
"""
