"""
One config per task and policy: here small enough for a laptop, in ``research/`` with the zoo's values. What is missing
does not run in LightZero 0.2.0: UniZero needs discrete actions, which the DeepMind Control Suite has not, and Sampled
UniZero's replay buffer fails on Atari's discrete ones (ValueError: inhomogeneous shape).
"""
