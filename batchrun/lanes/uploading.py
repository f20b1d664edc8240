"""Brings a request file to the provider, once: what an earlier try left there is found before anything goes out."""

from __future__ import annotations

from batchrun.api.remote import Present, Remote, Upload
from batchrun.lanes.errands import NOT_FOUND, Errands
from batchrun.records import Broken, Fault, Refusal, RemoteFile, Trouble
from batchrun.rules import faults
from batchrun.rules.remote import RemoteBatch

# Servers that do not know the way with the presigned address.
_NO_SUCH_WAY = frozenset({NOT_FOUND, 405})
# What may be otherwise the next time.
_PASSES = frozenset({Fault.SERVER, Fault.NETWORK, Fault.GARBLED, Fault.THROTTLED, Fault.OVERLOADED})


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
        while True:
            found = await self._found(batch) if again else None
            if found is not None:
                return found
            done = await self._once(batch, path)
            if not isinstance(done, Trouble) or done.fault not in _PASSES:
                return done
            again = True
            if not await self._errands.back_off(batch.file_name, done):
                return None

    async def withdraw(self, batch: RemoteBatch) -> None:
        """Remove what tries left at the provider of a file that nobody will use."""
        files = await self._errands.run(self._remote.files)
        for file in files if isinstance(files, list) else ():
            if file.name == batch.file_name:
                await self._delete(file.id)

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
        """One try. A reply that was lost may have left something there, so nothing is sent again without a look."""
        begun = await self._remote.begin_upload(batch.file_name, batch.sha256.hex())
        match begun:
            case Refusal(status) if status in _NO_SUCH_WAY:
                file = await self._remote.upload_whole(batch.file_name, path)
                return file.id if isinstance(file, RemoteFile) else await self._errands.judged(file)
            case Refusal() | Broken():
                return await self._errands.judged(begun)
            case Upload(file_id, location):
                put = await self._remote.put(location, path)
                if put is not None:
                    await self._delete(file_id)
                    return _passing(faults.trouble(put))
                return await self._preprocessed(batch, file_id)
            case Present(file_id):
                return await self._present(batch, file_id)

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
