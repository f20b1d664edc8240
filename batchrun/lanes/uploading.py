"""Brings a request file to the provider, once: what an earlier try left there is found before anything goes out."""

from __future__ import annotations

from batchrun.api.remote import Present, Remote, Upload
from batchrun.lanes.errands import NOT_FOUND, Errands
from batchrun.records import Fault, RemoteFile, Trouble
from batchrun.rules import faults
from batchrun.rules.remote import RemoteBatch

# Servers that do not know the way with the presigned address.
_NO_SUCH_WAY = frozenset({NOT_FOUND, 405})
_TRIES = 3


class Uploader:
    """The upload in its three calls: announce, put, preprocess."""

    def __init__(self, remote: Remote, errands: Errands) -> None:
        self._remote = remote
        self._errands = errands

    async def upload(self, batch: RemoteBatch, path: str, *, again: bool) -> str | Trouble | None:
        """The id of the file at the provider; a refusal that stays; None when the run is parked.

        Args:
            batch: whose request file it is; its bytes are like no other file's.
            path: where it is here.
            again: whether an earlier try may have left something there.
        """
        for _ in range(_TRIES):
            found = await self._found(batch) if again else None
            if found is not None:
                return found
            done = await self._once(batch, path)
            if not _may_pass(done):
                return done
            again = True
            if isinstance(done, Trouble) and not await self._errands.back_off(batch.file_name, done):
                return None
        return done

    async def _found(self, batch: RemoteBatch) -> str | Trouble | None:
        """The file, when all of it is there already; parts of it are removed."""
        files = await self._errands.run(self._remote.files)
        if not isinstance(files, list):
            return None
        whole: str | None = None
        for file in files:
            if file.name == batch.file_name:
                if file.size == batch.size and whole is None:
                    whole = file.id
                else:
                    await self._delete(file.id)
        return whole and await self._preprocessed(batch, whole)

    async def _once(self, batch: RemoteBatch, path: str) -> str | Trouble | None:
        begun: Upload | Present | Trouble | None = await self._errands.run(
            lambda: self._remote.begin_upload(batch.file_name, batch.sha256.hex())
        )
        if isinstance(begun, Trouble) and begun.status in _NO_SUCH_WAY:
            file = await self._errands.run(lambda: self._remote.upload_whole(batch.file_name, path))
            return file.id if isinstance(file, RemoteFile) else file
        match begun:
            case Upload(file_id, location):
                put = await self._remote.put(location, path)
                if put is not None:
                    await self._delete(file_id)
                    return _passing(faults.trouble(put))
                return await self._preprocessed(batch, file_id)
            case Present(file_id):
                return await self._present(batch, file_id)
        return begun

    async def _present(self, batch: RemoteBatch, file_id: str) -> str | Trouble | None:
        """The provider has this content already, or only the announcement of it."""
        file = await self._errands.run(lambda: self._remote.file(file_id))
        if isinstance(file, RemoteFile) and file.size == batch.size:
            return await self._preprocessed(batch, file_id)
        if file is not None:
            await self._delete(file_id)
        return None if file is None else _passing(Trouble(Fault.SERVER, None, "An upload had been left unfinished."))

    async def _preprocessed(self, batch: RemoteBatch, file_id: str) -> str | Trouble | None:
        """Tell that the bytes are there. Not every client does: where the call is refused, the size counts."""
        done = await self._errands.run(lambda: self._remote.preprocess(file_id))
        if isinstance(done, Trouble):
            file = await self._errands.run(lambda: self._remote.file(file_id))
            return file_id if isinstance(file, RemoteFile) and file.size == batch.size else done
        return None if done is None else file_id

    async def _delete(self, file_id: str) -> None:
        await self._errands.run(lambda: self._remote.delete(file_id))


def _passing(trouble: Trouble) -> Trouble:
    """A put that failed, with whatever status, is tried again from the announcement on: addresses expire."""
    return Trouble(Fault.SERVER, trouble.status, trouble.message, trouble.wait)


def _may_pass(done: str | Trouble | None) -> bool:
    return isinstance(done, Trouble) and done.fault is Fault.SERVER
