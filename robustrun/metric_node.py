"""The shared node `metric`: what is trained for and judged by, as it is written in a config."""

import inspect
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from robustrun.errors import ConfigError
from robustrun.numbers import NonNegative, Number
from robustrun.registry import nearest


class MetricNode(BaseModel):
    """A named metric with its parameters, or `name: expression` with a formula.

    A formula's special cases default to those it needs, where it would be 0/0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    formula: str | None = None
    special_case_positive: bool | None = None
    special_case_negative: bool | None = None
    beta: NonNegative | None = None
    threshold: Number | None = None
    recall_threshold: Number | None = None
    specificity_threshold: Number | None = None

    @model_validator(mode="after")
    def _builds(self) -> Self:
        self.build()
        return self

    def build(self) -> "Metric":  # noqa: F821
        """The metric itself.

        Raises:
            ConfigError: an unknown name, a parameter that the metric does not have, an unsupported formula.
        """
        from robustrun.methods.adversarial_prediction import NAMED, parse_metric

        given = self.model_dump(exclude={"name"}, exclude_none=True)
        if self.name == "expression":
            text = given.pop("formula", None)
            if text is None:
                raise ConfigError("metric.formula must be given: metric=expression 'metric.formula=\"2*tp/(ap+pp)\"'")
            factory, takes = parse_metric, ("special_case_positive", "special_case_negative")
        elif self.name in NAMED:
            text, factory = None, NAMED[self.name]
            takes = tuple(inspect.signature(factory).parameters)
        else:
            known = [*NAMED, "expression"]
            raise ConfigError(
                f"metric.name={self.name}: no such metric{nearest(self.name, known)} ({', '.join(known)})"
            )
        for key in given:
            if key not in takes:
                has = ", ".join(takes) or "no parameters"
                raise ConfigError(f"metric.{key}: the metric {self.name} does not take it (it takes: {has})")
        return factory(*([text] if text is not None else []), **given)
