"""Requests' bodies: the images, or the video, that they bring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import UploadFile

from masm.data.images import ImageError
from masm.serving.media import from_base64, read_media

MOST_IMAGES = 64
"""Of one request."""
WANTED = 'send an image\'s bytes (image/...), files (multipart/form-data), or JSON {"images": ["<base64>", ...]}'
VIDEO_WANTED = "send a video's bytes (video/...), or one file (multipart/form-data)"


Upload = Callable[[], bytes]
"""An image of a request: gives its file's bytes, or raises ImageError with its outcome. It is called where images are
decoded, so that large ones hold up nobody else."""


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


async def read_images(request: Request, media_root: Path | None, limit: int) -> list[Upload]:
    """The encoded images of a request, in their order.

    Args:
        request: whose body is read.
        media_root: the folder whose files it may name; None for none.
        limit: bytes that such a file may have.

    Raises:
        HTTPException: 400 for an empty or broken body, 415 for another content type, 422 for JSON of another form.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        async with _files(request, MOST_IMAGES, WANTED) as files:
            return [partial(bytes, await file.read()) for file in files]
    if kind == "application/json":
        return _from_json(await _body(request, WANTED), media_root, limit)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [partial(bytes, await _body(request, WANTED))]
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


def _from_json(body: bytes, media_root: Path | None, limit: int) -> list[Upload]:
    try:
        listed = Images.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise HTTPException(
            400 if fault["type"] == "json_invalid" else 422,
            f"the body cannot be used ({where + ': ' if where else ''}{fault['msg']}): {WANTED}.",
        ) from None
    given: list[Upload] = [_named(f"images.{n}", from_base64, text) for n, text in enumerate(listed.images)]
    return given + [_named(f"paths.{n}", read_media, text, media_root, limit) for n, text in enumerate(listed.paths)]


def _named(where: str, read: Callable[..., bytes], *arguments: object) -> Upload:
    """An upload whose errors say which of the request's images it is."""

    def upload() -> bytes:
        try:
            return read(*arguments)
        except ImageError as error:
            raise ImageError(f"{where}: {error}") from None

    return upload
