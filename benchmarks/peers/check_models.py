#!/usr/bin/env python3
"""Compares the models of pytorch_models.py with those of tests/pytorch, whose training equals Cleave's
(models_pytorch_test): from the same weights and tokens, on the CPU, the same loss and the same gradients,
in double, and in f32 where PyTorch groups products. Exit status 1 when they differ."""

import argparse
import pathlib
import sys

try:
    import torch
except ModuleNotFoundError:
    sys.exit("check_models.py: this Python has no torch: name one that has, or pip install torch numpy")
from torch.nn import functional as F

import pytorch_models as peers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "pytorch"))
import make_reference as reference  # noqa: E402

SHARED = dict(layers=2, hidden=128, heads=4, kv_heads=2, vocab=256, sequence=64, batch=4)
MODELS = {
    "llama": (reference.Llama, dict(SHARED, ffn=384, theta=10000.0)),
    "qwen2.5": (reference.Llama, dict(SHARED, ffn=384, theta=1e6, eps=1e-6, tied=True,
                                      qkv_bias=True)),
    "mixtral": (reference.Mixtral, dict(SHARED, ffn=256, theta=10000.0, experts=8, top_k=2,
                                        balance_loss=0.02, z_loss=0.0)),
}


def ours_of(config, products):
    parser = argparse.ArgumentParser()
    peers.add_options(parser)
    words = ["--family", "llama", "--expert-products", products]
    for key, value in config.items():
        if key != "z_loss":
            words += ["--" + key.replace("_", "-"), str(value + 0)]
    return peers.make_model(parser.parse_args(words))


def peer_name(name):
    return name.replace("router.gate", "router").replace("mlp.experts.", "mlp.")


def gradients_of(model, loss):
    loss.backward()
    return {peer_name(n): p.grad for n, p in model.named_parameters()}


def apart(name, products):
    """How far the loss, and the gradients as a whole, are from the reference's, relative to them."""
    model_class, config = MODELS[name]
    dtype = torch.float32 if products == "grouped" else torch.float64
    theirs = model_class(**config).to(dtype)
    reference.draw_weights(theirs, config["layers"])
    ours = ours_of(config, products).to(dtype)
    ours.load_state_dict({peer_name(n): p for n, p in theirs.state_dict().items()}, strict=False)
    tokens, targets = reference.batch_of(0, config)
    result = theirs(tokens)
    result = result if isinstance(result, tuple) else (result, 0)
    wanted = F.cross_entropy(result[0].flatten(0, 1), targets.flatten()) + result[1]
    loss = peers.loss_of(ours(tokens), targets.flatten())
    a, b = gradients_of(ours, loss), gradients_of(theirs, wanted)
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    difference = sum((a[n] - b[n]).square().sum() for n in b) / sum(g.square().sum() for g in b.values())
    return abs(loss.item() / wanted.item() - 1), difference.item() ** 0.5


def main():
    good = True
    for name in MODELS:
        for products in ["loop", "grouped"] if name == "mixtral" else ["loop"]:
            try:
                loss, gradients = apart(name, products)
            except (RuntimeError, NotImplementedError, AttributeError) as e:
                # Grouped products need a PyTorch that has them for this device; nothing else may fail.
                if products != "grouped" or "grouped" not in str(e):
                    raise
                print(f"{name:8} {products:8} does not run here: {str(e).splitlines()[0]}")
                continue
            # The rotary table of the peers is in f32 anyway.
            good = good and loss < 1e-6 and gradients < 1e-5
            print(f"{name:8} {products:8} loss {loss:.1e}, gradients {gradients:.1e} from the reference")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
