"""Flow-matching text-to-image models as policies: schedule, kernels, noise, solver, engine, policy, model families."""
