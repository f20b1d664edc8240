-- The queries about batches at the provider.

-- name: add_batch
-- A batch as planned.
insert into batch(model, file_name, nonce, lines, size, sha256, reserved_nano, planned_ms, stands_for)
values (:model, :file_name, :nonce, :lines, :size, :sha256, :reserved_nano, :planned_ms, :stands_for) returning id;

-- name: add_line
-- One of its lines.
insert into batch_line(batch, line, digest, size, plan) values (:batch, :line, :digest, :size, :plan);

-- name: take_row
-- The row that the line was made from waits for the batch now.
update request set state = 1 where row = :row and digest = :digest and state = 0;

-- name: read_batches
-- Batches as written down, or one of them, with the lines that have no outcome yet.
select id, state, model, file_name, nonce, lines,
       (select count(*) from batch_line where batch_line.batch = batch.id and outcome = 0),
       size, sha256, reserved_nano, planned_ms, file_id, creating_ms, creates, excuse, stands_for
from batch
where id = :batch or (:batch is null and state <> 'collected'
                      and exists (select 1 from batch_line where batch_line.batch = batch.id))
order by id;

-- name: read_jobs
-- The provider's jobs on a batch's file, as they were first seen.
select id, status, progress, output_file_id, error_file_id, error, seen_ms, moved_ms, cancelled_ms, collected_ms
from batch_job where batch = :batch order by seen_ms, id;

-- name: set_uploading
-- The upload may begin.
update batch set state = 'uploading' where id = :batch and state in ('planned', 'uploading');

-- name: set_uploaded
-- The provider has the file.
update batch set state = 'uploaded', file_id = :file_id where id = :batch and state = 'uploading';

-- name: set_creating
-- A create is about to go out.
update batch set state = 'creating', creating_ms = :now_ms, creates = creates + 1
where id = :batch and state in ('uploaded', 'creating');

-- name: set_uncreated
-- The provider refused the create, so there is no job.
update batch set state = 'uploaded' where id = :batch and state = 'creating';

-- name: set_running
-- The provider has told of a job on the file.
update batch set state = 'running' where id = :batch and state in ('uploaded', 'creating');

-- name: set_excuse
-- Why its lines may come back without it being their fault.
update batch set excuse = :excuse where id = :batch;

-- name: set_over
-- It is collected or abandoned.
update batch set state = :state, ended_ms = :now_ms where id = :batch;

-- name: set_left_remote
-- Whether its files are still at the provider.
update batch set left_remote = :left where id = :batch;

-- name: told_job
-- What the provider said of a job; true when anything changed.
insert into batch_job(id, batch, status, progress, output_file_id, error_file_id, error, seen_ms, moved_ms)
values (:id, :batch, :status, :progress, :output_file_id, :error_file_id, :error, :now_ms, :now_ms)
on conflict (id) do update set status = excluded.status, progress = excluded.progress,
  output_file_id = excluded.output_file_id, error_file_id = excluded.error_file_id, error = excluded.error,
  moved_ms = case when status is excluded.status and progress is excluded.progress then moved_ms else :now_ms end;

-- name: cancel_job
-- We are about to ask for its cancelling.
update batch_job set cancelled_ms = :now_ms where id = :id;

-- name: is_collected
-- Whether what it left was taken before.
select 1 from batch_job where id = :id and collected_ms is not null;

-- name: collected_job
-- What it left has been taken.
update batch_job set collected_ms = :now_ms where id = :id;

-- name: lines_of
-- Some lines of a batch, by number, with what they have been through.
select line, batch_line.digest, size, outcome, coalesce(missed.times, 0), plan
from batch_line left join missed on missed.digest = batch_line.digest
where batch = :batch and line in (select value from json_each(:lines));

-- name: lines_left
-- Lines that have no outcome yet.
select line from batch_line where batch = :batch and outcome = 0;

-- name: set_outcome
-- A line has its answer or its rejection.
update batch_line set outcome = :outcome where batch = :batch and line = :line;

-- name: arrived_table
-- What lines brought, to be given to rows that wait for it.
create temp table if not exists arrived(
  line integer primary key, digest blob not null, state integer not null, answer integer);

-- name: add_arrived
-- One of them.
insert or replace into temp.arrived(line, digest, state, answer) values (:line, :digest, :state, :answer);

-- name: lines_back
-- Lines without an outcome bring nothing: of the rows that ask the same, those that no other batch works for go back.
-- One sort, no join: SQLite made no index for the join of lines and counts, and a full batch took a minute.
with back as (select line, digest from batch_line where batch = :batch and outcome = 0),
room as (
  select line, digest, 0 as rows from back
  union all
  select null, digest, 1 from request where state = 1 and digest in (select digest from back)
  union all
  select null, digest, -1 from batch_line join batch on batch.id = batch_line.batch
  where batch.id <> :batch and outcome = 0 and batch.state not in ('collected', 'abandoned')
    and digest in (select digest from back))
insert into temp.arrived(line, digest, state, answer)
select line, digest, 0, null from (
  select line, digest, sum(rows) over (partition by digest) as rows,
         row_number() over (partition by digest order by line nulls last) as nth
  from room)
where line is not null and nth <= rows;

-- name: settle_arrived
-- The k rows that wait for a digest take what k lines brought, answers first, and good ones before those to be bettered.
update request set state = matched.state, answer = matched.answer
from (select wanted.row, arrived.state, arrived.answer from
        (select row, digest, row_number() over (partition by digest order by row) as nth
         from request where state = 1 and digest in (select digest from temp.arrived)) as wanted
      join (select digest, state, answer,
                   row_number() over (partition by digest order by answer is null, state = 4, state desc, line) as nth
            from temp.arrived) as arrived on arrived.digest = wanted.digest and arrived.nth = wanted.nth) as matched
where request.row = matched.row;

-- name: drop_arrived
-- What is in the table goes; the table stays, for dropping it would have to wait for whoever reads anything just then.
delete from temp.arrived;

-- name: any_repair
-- Whether anything is sent in place of what was asked.
select 1 from repair limit 1;

-- name: repairs_of
-- Lines of a batch that differ from what their rows asked.
select line, plan from batch_line where batch = :batch and plan is not null;

-- name: count_misses
-- Lines that came back without an answer, to be counted against what they ask.
insert into missed(digest, times) select distinct digest, :times from batch_line where batch = :batch and outcome = 0
on conflict (digest) do update set times = times + excluded.times;

-- name: keep_words
-- What the provider said of a line that it brought no answer for.
insert into last_words(digest, message) values (:digest, :message)
on conflict (digest) do update set message = excluded.message;

-- name: last_words
-- What it said last.
select message from last_words where digest = :digest;

-- name: any_words
-- Whether the provider said anything of any line.
select 1 from last_words limit 1;

-- name: forget_old_repairs
-- What was to be sent for rows that want nothing any more; the rows are read once, and only those few are kept in mind.
delete from repair where digest not in (
  select digest from request where state in (0, 1, 4) and digest in (select digest from repair));

-- name: forget_old_words
-- What was said of lines of such rows.
delete from last_words where digest not in (
  select digest from request where state in (0, 1, 4) and digest in (select digest from last_words));

-- name: has_missed
-- Whether any of them came back so often.
select exists (select 1 from missed where times >= :times);

-- name: forget_lines
-- A batch that is over needs its lines no more.
delete from batch_line where batch = :batch;

-- name: claim_rows
-- After a rebuild: rows that ask for what a running line asks for wait for it.
update request set state = 1
from (select wanted.row from
        (select row, digest, row_number() over (partition by digest order by row) as nth
         from request where state = 0 and digest in (select digest from batch_line where outcome = 0)) as wanted
      join (select digest, row_number() over (partition by digest order by batch, line) as nth
            from batch_line join batch on batch.id = batch_line.batch
            where outcome = 0 and batch.state not in ('collected', 'abandoned')) as line
        on line.digest = wanted.digest and line.nth = wanted.nth) as claimed
where request.row = claimed.row;

-- name: unclaim_rows
-- Before a rebuild no row waits for a batch: rows and lines are matched anew.
update request set state = 0 where state = 1;

-- name: count_waiting
-- Rows that wait for a batch.
select count(*) from request where state = 1;

-- name: has_lines
-- Whether any batch is not over.
select exists (select 1 from batch_line);

-- name: reserved_by_batches
-- Nano-dollars set aside for batches that are not over.
select id, reserved_nano from batch where state not in ('collected', 'abandoned');

-- name: files_kept
-- Files on this machine that a batch still needs.
select file_name from batch where state not in ('collected', 'abandoned');

-- name: batches_standing
-- Batches that are not over, with the newest job of each.
select batch.id, model, lines, coalesce(job.status, state), job.progress,
       coalesce(job.seen_ms, creating_ms, planned_ms), job.id
from batch left join batch_job as job on job.id = (
  select id from batch_job where batch_job.batch = batch.id order by seen_ms desc, id limit 1)
where state not in ('collected', 'abandoned') order by batch.id;

-- name: left_remote
-- Batches that have files at the provider and need them no more: an abandoned one whose lines are kept still does.
select id, file_id from batch
where left_remote = 1 and state in ('collected', 'abandoned')
      and not exists (select 1 from batch_line where batch_line.batch = batch.id)
order by id;

-- name: count_gauge
-- Sums of observed usage, by the model that was asked for.
insert into gauge(model, replies, bytes, prompt_tokens, bytes_sq, bytes_tokens, completion_tokens, completion_sq)
values (:model, :replies, :bytes, :prompt_tokens, :bytes_sq, :bytes_tokens, :completion_tokens, :completion_sq)
on conflict (model) do update set replies = replies + excluded.replies, bytes = bytes + excluded.bytes,
  prompt_tokens = prompt_tokens + excluded.prompt_tokens, bytes_sq = bytes_sq + excluded.bytes_sq,
  bytes_tokens = bytes_tokens + excluded.bytes_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens,
  completion_sq = completion_sq + excluded.completion_sq;

-- name: gauges
-- All of them.
select model, replies, bytes, prompt_tokens, bytes_sq, bytes_tokens, completion_tokens, completion_sq from gauge;
