"""Requests' bodies: the images, or the video, that they bring."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import UploadFile

from masm.data.images import ImageError
from masm.serving.media import media_file

MOST_IMAGES = 64
"""Of one request."""
WANTED = 'send an image\'s bytes (image/...), files (multipart/form-data), or JSON {"images": ["<base64>", ...]}'
VIDEO_WANTED = "send a video's bytes (video/...), or one file (multipart/form-data)"


class Images(BaseModel):
    """The JSON body of a request: images as base64, then files of the folder that requests may name files of."""

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[str], Field(max_length=MOST_IMAGES)] = []
    paths: Annotated[list[str], Field(max_length=MOST_IMAGES)] = []

    @model_validator(mode="after")
    def _not_empty(self) -> Images:
        if not self.images and not self.paths:
            raise ValueError("it lists no image")
        return self


async def read_images(request: Request, media_root: Path | None) -> list[bytes]:
    """The encoded images of a request, in their order.

    Args:
        request: whose body is read.
        media_root: the folder whose files it may name; None for none.

    Raises:
        HTTPException: 400 for an empty or broken body, 415 for another content type, 422 for JSON of another form,
            and for a path that is not below `media_root`.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        async with _files(request, MOST_IMAGES, WANTED) as files:
            return [await file.read() for file in files]
    if kind == "application/json":
        return _from_json(await _body(request, WANTED), media_root)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [await _body(request, WANTED)]
    raise HTTPException(415, f"content type {kind or 'none'} is not taken: {WANTED}.")


async def read_video(request: Request) -> bytes:
    """The video file of a request.

    Raises:
        HTTPException: 400 for an empty or broken body, 415 for another content type.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        async with _files(request, 1, VIDEO_WANTED) as (file,):
            return await file.read()
    if kind.startswith("video/") or kind == "application/octet-stream":
        return await _body(request, VIDEO_WANTED)
    raise HTTPException(415, f"content type {kind or 'none'} is not taken: {VIDEO_WANTED}.")


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def _body(request: Request, wanted: str) -> bytes:
    body = await request.body()
    if not body:
        raise HTTPException(400, f"the body is empty: {wanted}.")
    return body


@asynccontextmanager
async def _files(request: Request, most: int, wanted: str) -> AsyncIterator[list[UploadFile]]:
    """The files of a form; a broken form raises 400 by itself."""
    async with request.form(max_files=most, max_fields=0) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, f"the form holds no file: {wanted}.")
        yield files


def _from_json(body: bytes, media_root: Path | None) -> list[bytes]:
    try:
        listed = Images.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise HTTPException(
            400 if fault["type"] == "json_invalid" else 422,
            f"the body cannot be used ({where + ': ' if where else ''}{fault['msg']}): {WANTED}.",
        ) from None
    decoded = [_decoded(index, text) for index, text in enumerate(listed.images)]
    return decoded + [_read(index, text, media_root) for index, text in enumerate(listed.paths)]


def _decoded(index: int, text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:  # binascii.Error, or letters outside of ASCII
        raise HTTPException(422, f"images.{index} is not base64: encode the image file's bytes.") from None


def _read(index: int, text: str, media_root: Path | None) -> bytes:
    try:
        return media_file(text, media_root).read_bytes()
    except ImageError as error:
        raise HTTPException(422, f"paths.{index}: {error}.") from None
