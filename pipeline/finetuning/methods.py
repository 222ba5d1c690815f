"""Fine-tuning from the freeze boundary's maps (*Deep Learning with Python*, 5.3)."""

from dataclasses import replace
from typing import Any

from pipeline.bases.boundary import Boundary, unfrozen, upper_model
from pipeline.finetuning.result import Trained
from pipeline.finetuning.settings import Plan
from pipeline.finetuning.training import Network, RunOptions, Task, train
from pipeline.heads.dense import build_dense
from pipeline.models.top_block import HEAD_WEIGHTS

HEAD_STAGE, JOINT_STAGE = "head", "fine-tuning"


def finetune_from_cache(
    base_model: Any,
    boundary: Boundary,
    task: Task,
    options: RunOptions,
    *,
    plan: Plan,
    features: Task,
) -> Trained:
    """Train the head, then the layers above the boundary with it, reading only cached maps.

    Parameters
    ----------
    base_model : frozen, as `build_base` makes it; it is left as it was.
    task : rows of the boundary's maps (N, H, W, C); views of an image are rows of their own.
    features : the same rows of the base's last layer.

    The result's ``frozen_head`` is the head after the first stage.
    """
    upper = upper_model(base_model, boundary)
    head = build_dense(upper.output_shape[1:], task.class_count, plan.network, options.seed)
    on_features = Network(head, head_variables(head))
    frozen = train(on_features, features, plan.head, options, stage=HEAD_STAGE)
    with unfrozen(base_model, boundary) as learns:
        network = Network(head, learns | head_variables(head), body=upper)
        tuned = train(network, task, plan.joint, options, stage=JOINT_STAGE)
    return replace(tuned, frozen_head=frozen)


def head_variables(head: Any) -> dict[str, Any]:
    """A dense head's variables by name, ``head/hidden_kernel`` and so on."""
    names = (f"head/{name}" for name in HEAD_WEIGHTS)
    return dict(zip(names, head.trainable_variables, strict=True))
