"""Next-token cross-entropy straight from hidden states, in one reused (tokens, vocabulary) buffer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(hidden @ weight.T), with both gradients computed during the forward pass.

    The head is where a small model spends its time on a CPU: fresh (N, V) buffers cost page faults, and autograd would
    walk them about eight times. Here one buffer is reused and overwritten in place, and the softmax is left
    unnormalised: dividing by its sums happens on the (N, d) side of both products."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, buffer: Tensor) -> Tensor:
        n_tokens = hidden.shape[0]
        logits = torch.mm(hidden, weight.t(), out=buffer)  # (N, V)
        top = logits.amax(dim=1, keepdim=True)  # (N, 1)
        logits -= top
        gold = logits.gather(1, targets[:, None])  # (N, 1)
        unnormalised = logits.exp_()
        total = unnormalised.sum(dim=1, keepdim=True)  # (N, 1)
        loss = (total.log() - gold).mean()
        shrink = (1 / n_tokens) / total  # (N, 1)
        grad_hidden = torch.mm(unnormalised, weight).mul_(shrink)
        grad_hidden.sub_(weight.index_select(0, targets), alpha=1 / n_tokens)
        grad_weight = torch.mm(unnormalised.t(), hidden * shrink)
        grad_weight.index_add_(0, targets, hidden, alpha=-1 / n_tokens)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None


class NextTokenLoss(nn.Module):
    """A causal language model as a map from token rows to their mean loss, the thing that is trained.

    rows (B, T + 1) -> mean over the B T predictions, in nats. Takes the body and the head's weight of `model`."""

    def __init__(self, model: nn.Module, *, n_rows: int, n_positions: int) -> None:
        super().__init__()
        self.model = model
        self.head = model.get_output_embeddings()
        self.inverse_scale = 1 / getattr(model.config, "logits_scaling", 1.0)
        self._shape = (n_rows * n_positions, self.head.out_features)
        self._buffer: Tensor | None = None

    def forward(self, rows: Tensor) -> Tensor:
        inputs, targets = rows[:, :-1], rows[:, 1:].reshape(-1)
        hidden = self.model.model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # (B T, d)
        # Granite divides the logits; dividing the hidden state is the same and d wide instead of V wide.
        hidden = hidden * self.inverse_scale
        if hidden.device.type != "cpu":
            return F.cross_entropy(self.head(hidden).float(), targets)
        if self._buffer is None:
            self._buffer = torch.empty(self._shape)
        return _FusedLinearCrossEntropy.apply(hidden.float(), self.head.weight, targets, self._buffer)
