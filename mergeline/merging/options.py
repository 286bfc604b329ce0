"""Types of options that several methods share; pydantic checks values against them."""

from typing import Annotated

from pydantic import Field

KeepRatio = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
