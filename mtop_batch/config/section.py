"""What the sections of a configuration have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mtop_batch.storage import check_address

Address = Annotated[str, AfterValidator(check_address)]
"""Where data or bundles are: without credentials, for a bundle holds its configuration."""
GivenAddress = Annotated[Annotated[str, Field(min_length=1)], AfterValidator(check_address)]


class Section(BaseModel):
    """A section: unknown keys are refused, and its values stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """True and false are numbers to Python."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("neither true nor false is meant here")
        return value
