"""Stages that learn beside the weights and are saved with them: value trackers, multipliers of constraints.

A stage without `state_dict` does not belong here.
"""
