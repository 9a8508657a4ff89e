"""Recorders that do again what they recorded, in the place of CUDA graphs, whose rules they keep: inputs and outputs
have fixed places, and what recording does is undone or, where torch's does it too, left to be undone."""

import torch

from common.capture import listed, restore


class Again:
    """A recorder; state: what recording must leave alone."""

    def __init__(self, state=(), spoil=0.0, fails=None):
        self.state, self.spoil, self.fails, self.replays = list(state), spoil, fails, 0

    def record(self, function):
        if self.fails:
            function()                                        # the statistics have moved when it breaks off
            raise RuntimeError(self.fails)
        before = [tensor.clone() for tensor in self.state]
        self.function, self.outputs = function, function()
        restore(self.state, before)
        for tensor in listed(self.outputs):
            tensor.fill_(torch.nan)                           # nobody may read it before a replay
        return self.outputs

    def replay(self):
        self.replays += 1
        restore(listed(self.outputs), [one + self.spoil for one in listed(self.function())])


class Places(torch.autograd.Function):
    """The passes of a module with fixed places: what a second call finds in them is its own, not the first one's."""

    @staticmethod
    def forward(ctx, recording, x, *parameters):
        recording.x.copy_(x)
        recording.replays += 1
        with torch.enable_grad():
            recording.logits = recording.module(recording.x)
        ctx.recording = recording
        return recording.logits.detach() + recording.spoil

    @staticmethod
    def backward(ctx, gradient):
        recording = ctx.recording
        found = torch.autograd.grad(recording.logits, recording.parameters, gradient, allow_unused=True)
        return None, None, *found


class Recording:
    def __init__(self, module, sample, spoil):
        self.module, self.x, self.spoil, self.replays = module, sample.clone(), spoil, 0
        self.parameters = [one for one in module.parameters() if one.requires_grad]
        for _ in range(3):
            module(sample)

    def __call__(self, x):
        return Places.apply(self, x, *self.parameters)


class Recorder:
    def __init__(self, spoil=0.0, fails=None):
        self.spoil, self.fails, self.made = spoil, fails, []

    def __call__(self, module, sample):
        if self.fails:
            module(*sample)
            raise RuntimeError(self.fails)
        self.made.append(Recording(module, *sample, self.spoil))
        return self.made[-1]
