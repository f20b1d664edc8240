-- Every query of the checkpoint but those about batches, each under its name with a sentence.

-- name: open_run
-- A new start, with the token that fences its commits.
insert into run(opened_ms, token) values (:now_ms, :token) returning id;

-- name: crash_open_runs
-- A run found open did not close itself: its marks count as spent from now on.
update run set state = 'crashed', closed_ms = :now_ms where state = 'open';

-- name: fence
-- The first statement of every commit: only the run that holds the token may write.
update run set kept = kept + :kept, doubt_calls = doubt_calls + :doubt_calls, doubt_nano = doubt_nano + :doubt_nano
where id = :run and token = :token and state = 'open';

-- name: raise_marks
-- The most calls in flight and the most money reserved, committed before either may be used; they never sink.
update run set mark_calls = max(mark_calls, :calls), mark_nano = max(mark_nano, :nano) where id = :run and token = :token and state = 'open';

-- name: close_run
-- The run ended in good order: its marks no longer count.
update run set state = :state, reason = :reason, closed_ms = :now_ms, learned = :learned,
  doubt_calls = doubt_calls + :doubt_calls, doubt_nano = doubt_nano + :doubt_nano
where id = :run and token = :token and state = 'open';

-- name: withdraw_run
-- A start that sent nothing and came to no end of its own: the run before it stays the newest.
delete from run where id = :run and token = :token and state = 'open';

-- name: newest_runs
-- How the newest starts ended, newest first, and how many outcomes each kept.
select state, reason, kept from run order by id desc limit 20;

-- name: last_run
-- The newest start, for what it learned and how it ended.
select opened_ms, closed_ms, state, reason from run order by id desc limit 1;

-- name: moments
-- When a reply was last kept, and when a run last finished; null before the first.
select (select kept_ms from paid order by id desc limit 1),
       (select closed_ms from run where state = 'finished' order by id desc limit 1);

-- name: opened
-- When a run began.
select opened_ms from run where id = :run;

-- name: learned
-- What the newest run that wrote it down has learned about the pace.
select learned from run where learned is not null order by id desc limit 1;

-- name: hidden
-- Calls and nano-dollars that may have been paid twice: doubts, and the marks of crashed runs.
select coalesce(sum(doubt_calls + case state when 'crashed' then mark_calls else 0 end), 0),
       coalesce(sum(doubt_nano + case state when 'crashed' then mark_nano else 0 end), 0) from run;

-- name: paid_newest
-- The id of the newest paid reply: how many have ever been kept.
select coalesce(max(id), 0) from paid;

-- name: read_job
-- Whose checkpoint this is and what was asked for.
select provider, job, columns from job;

-- name: write_job
-- The newest job.
insert into job(one, provider, job, columns) values (1, :provider, :job, :columns)
on conflict (one) do update set job = excluded.job, columns = excluded.columns;

-- name: sources
-- The files the requests were built from.
select path, size, mtime_ns, rows from source order by id;

-- name: forget_sources
-- Before the new list is written.
delete from source;

-- name: add_source
-- One input file.
insert into source(path, size, mtime_ns, rows) values (:path, :size, :mtime_ns, :rows);

-- name: digests
-- What stands in a stretch of rows, to compare it with what was read.
select digest from request where row >= :first and row < :first + :count order by row;

-- name: pending
-- The next rows that want an answer, or a better one: how many batches brought them none, what is to be sent in place of
-- what was asked, and the answer they hold.
select row, request.digest, coalesce(missed.times, 0), repair.plan,
       paid.id, paid.fault, paid.retries, paid.prompt_tokens, paid.completion_tokens
from request left join missed on missed.digest = request.digest left join repair on repair.digest = request.digest
left join paid on paid.id = request.answer
where state = :state and row > :after order by row limit :count;

-- name: pending_leaders
-- The same when identical rows share one answer: only the first of them is sent.
select row, request.digest, coalesce(missed.times, 0), repair.plan,
       paid.id, paid.fault, paid.retries, paid.prompt_tokens, paid.completion_tokens
from request left join missed on missed.digest = request.digest left join repair on repair.digest = request.digest
left join paid on paid.id = request.answer
where state = :state and row > :after and row not in (select row from temp.twin) order by row limit :count;

-- name: want_better
-- Answered rows whose answer carries a mark that the user wants mended, and was not asked for again too often.
update request set state = 4 where state = 2 and answer in (
  select id from paid where (fault = 'cut_short' and retries < :length_retries)
                         or (fault = 'invalid_output' and retries < :invalid_retries));

-- name: want_no_better
-- The others keep what they have.
update request set state = 2 where state = 4 and answer not in (
  select id from paid where (fault = 'cut_short' and retries < :length_retries)
                         or (fault = 'invalid_output' and retries < :invalid_retries));

-- name: add_paid
-- A paid reply.
insert into paid(id, digest, lane, model, finish, prompt_tokens, completion_tokens, cached_tokens, cost_nano,
                 latency_ms, attempts, kept_ms, fault, checksum, repair, retries)
values (:id, :digest, :lane, :model, :finish, :prompt_tokens, :completion_tokens, :cached_tokens, :cost_nano,
        :latency_ms, :attempts, :kept_ms, :fault, :checksum, :repair, :retries);

-- name: add_body
-- Its body.
insert into body(id, dictionary, reply) values (:id, :dictionary, :reply);

-- name: link
-- The row takes its answer, unless it holds one already.
update request set state = :state, answer = :id
where row = :row and digest = :digest and answer is null and state = 0;

-- name: swap
-- A better reply takes the place of the answer that was seen.
update request set state = :state, answer = :id
where row = :row and digest = :digest and state = 4 and answer = :before;

-- name: swap_twins
-- So do the rows that share that answer, or they would go on showing a reply that is surplus.
update request set state = :state, answer = :id
where row in (select row from temp.twin where leader = :row) and digest = :digest and state = 4 and answer = :before;

-- name: stay
-- The row keeps the answer that was seen.
update request set state = :state where row = :row and digest = :digest and state = 4 and answer = :before;

-- name: count_retry
-- An answer that stays has had one more reply beside it, or the next start would ask for that one anew.
update paid set retries = max(retries, :retries) where id = :id;

-- name: content
-- The row keeps its answer: a better one cannot be had, and is not looked for again.
update paid set retries = :for_good
where id = (select answer from request where row = :row and digest = :digest and state = 4);

-- name: settle_content
-- It wants nothing any more.
update request set state = 2 where row = :row and digest = :digest and state = 4;

-- name: mark_surplus
-- A paid reply that is no row's answer, and why; not so when the row it was given to holds it, or one that shares it.
update paid set surplus = :surplus, unused = 0
where id = :id and surplus is null
  and not exists (select 1 from request where row = :row and answer = :id)
  and not exists (select 1 from temp.sharing cross join request on request.row = sharing.row
                  where sharing.answer = :id and request.answer = :id);

-- name: sharing_table
-- Rows that want a better answer than one they share with other rows: each asks for itself when `--dedupe` is not said
-- any more. There is no index on answers, and a look through all rows for every better reply would be too slow.
create temp table if not exists sharing(answer integer not null, row integer not null, primary key (answer, row))
without rowid;

-- name: forget_sharing
-- They are found anew at each start.
delete from temp.sharing;

-- name: find_sharing
-- Rows that hold the same answer want a better one together, or none, so those in this state are all of them.
insert into temp.sharing(answer, row)
select answer, row from (select answer, row, count(*) over (partition by answer) as holders from request where state = 4)
where holders > 1;

-- name: reject
-- The row is given up.
update request set state = 3 where row = :row and digest = :digest and state = 0;

-- name: add_rejection
-- With the reason, the newest one if there was one before.
insert into rejection(digest, fault, status, message, attempts, kept_ms)
values (:digest, :fault, :status, :message, :attempts, :kept_ms)
on conflict (digest) do update set fault = excluded.fault, status = excluded.status, message = excluded.message,
  attempts = excluded.attempts, kept_ms = excluded.kept_ms;

-- name: count_state
-- A counter moves with what it counts.
update tally set rows = rows + :by where state = :state;

-- name: count_spend
-- Money and tokens by lane and model.
insert into spend(lane, model, replies, unpriced, prompt_tokens, completion_tokens, cost_nano)
values (:lane, :model, :replies, :unpriced, :prompt_tokens, :completion_tokens, :cost_nano)
on conflict (lane, model) do update set replies = replies + excluded.replies, unpriced = unpriced + excluded.unpriced,
  prompt_tokens = prompt_tokens + excluded.prompt_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens, cost_nano = cost_nano + excluded.cost_nano;

-- name: count_pulse
-- The beat of the last seconds.
insert into pulse(ten_s, replies, tokens) values (:ten_s, :replies, :tokens)
on conflict (ten_s) do update set replies = replies + excluded.replies, tokens = tokens + excluded.tokens;

-- name: trim_pulse
-- Older beats tell nothing any more.
delete from pulse where ten_s < :ten_s;

-- name: add_name
-- A text that repeats, once.
insert into name(text) values (:text) on conflict (text) do nothing;

-- name: names
-- All of them.
select id, text from name;

-- name: add_dictionary
-- A newly trained dictionary.
insert into dictionary(content) values (:content) returning id;

-- name: dictionaries
-- All of them.
select id, content from dictionary;

-- name: add_event
-- A line in the diary.
insert into event(at_ms, kind, detail) values (:at_ms, :kind, :detail);

-- name: retry_rows
-- Rejected rows go back to pending; a bad input line stays what it is.
update request set state = 0 where state = 3 and digest in (
  select digest from rejection where fault <> 'bad_row' and (:fault is null or fault = :fault) and kept_ms >= :since_ms);

-- name: forget_misses
-- What is tried again by the user's wish begins with a clean sheet.
delete from missed where digest in (
  select digest from rejection where fault <> 'bad_row' and (:fault is null or fault = :fault) and kept_ms >= :since_ms);

-- name: retry_rejections
-- And their reasons are forgotten.
delete from rejection where fault <> 'bad_row' and (:fault is null or fault = :fault) and kept_ms >= :since_ms;

-- name: forget_repairs
-- And what was to be sent in their place.
delete from repair where digest in (
  select digest from rejection where fault <> 'bad_row' and (:fault is null or fault = :fault) and kept_ms >= :since_ms);

-- name: forget_all_repairs
-- The user's word on repairs is another now: every row is judged anew. What is with the provider stands with its line.
delete from repair;

-- name: plan_repair
-- What is to be sent next for a digest. Of identical lines that were refused, the one that was refused more often tells:
-- else the others would send its row back to where it was.
insert into repair(digest, plan) values (:digest, :plan)
on conflict (digest) do update set plan = excluded.plan
where coalesce(json_extract(excluded.plan, '$.refusals'), 0) >= coalesce(json_extract(repair.plan, '$.refusals'), 0);

-- name: has_bad_rows
-- Whether the input has lines that are no requests.
select exists (select 1 from request join rejection using (digest) where state = 3 and fault = 'bad_row');

-- name: written
-- What an output looked like when it was written, and what it was written from.
select size, mtime_ns, revision from written where path = :path;

-- name: note_written
-- Remember it.
insert into written(path, size, mtime_ns, revision) values (:path, :size, :mtime_ns, :revision)
on conflict (path) do update set size = excluded.size, mtime_ns = excluded.mtime_ns, revision = excluded.revision;

-- name: outdate_written
-- The rows or their outcomes changed in a way that counting answers does not show.
update written set revision = -1;

-- name: incoming_table
-- Where a changed input is collected before it replaces what was wanted.
create temp table incoming(row integer primary key, digest blob not null, state integer not null);

-- name: add_incoming
-- A stretch of rows from packed digests, in one statement.
with recursive n(i) as (select 0 union all select i + 1 from n where i + 1 < :count)
insert into temp.incoming(row, digest, state) select :first + i, substr(:digests, 1 + 16 * i, 16), 0 from n where :count > 0;

-- name: bad_table
-- Where the reasons of bad rows wait meanwhile.
create temp table bad(digest blob primary key, message text not null) without rowid;

-- name: add_bad
-- Why a row is no request.
insert or replace into temp.bad(digest, message) values (:digest, :message);

-- name: take_bad
-- Bad rows are rejections like others.
insert or replace into rejection(digest, fault, status, message, attempts, kept_ms)
select digest, 'bad_row', null, message, 0, :now_ms from temp.bad;

-- name: drop_bad
-- And go when they are taken.
drop table if exists temp.bad;

-- name: mark_incoming_bad
-- A row of the stretch that is no request.
update temp.incoming set state = 3 where row = :row;

-- name: aside
-- Paid replies that are no row's answer, and what they cost.
select count(*), coalesce(sum(cost_nano), 0) from paid indexed by paid_aside where surplus is not null or unused = 1;

-- name: loose_table
-- Replies that no row holds, of which some may find one.
create temp table if not exists loose(id integer primary key);

-- name: clear_loose
-- An empty one to begin with.
delete from temp.loose;

-- name: loosen_rows
-- Answers of rows that go, or that are to be what was read for them.
insert or ignore into temp.loose(id)
select answer from request where row >= :total and answer is not null
union all
select request.answer from temp.incoming cross join request on request.row = incoming.row
where request.answer is not null;

-- name: loosen_arrived
-- Answers that lines of a batch brought.
insert or ignore into temp.loose(id) select answer from temp.arrived where answer is not null;

-- name: hold_on
-- Not loose is what a row still holds: one that shared it, or one that was given it.
delete from temp.loose where id in (
  select loose.id from request cross join temp.loose on loose.id = request.answer where request.answer is not null);

-- name: loosen_aside
-- What was loose before; 'twice' is as good as unused here. A reply without a body serves nobody.
insert or ignore into temp.loose(id)
select id from paid indexed by paid_aside
where (surplus is not null or unused = 1) and (surplus is null or surplus = 'twice') and pruned = 0;

-- name: any_loose
-- Whether there is any.
select exists (select 1 from temp.loose);

-- name: drop_rows
-- The input became shorter.
delete from request where row >= :total;

-- name: take_incoming
-- What is wanted now. The order by keeps the insert in the order of the pages.
insert or replace into request(row, digest, state, answer) select row, digest, state, null from temp.incoming order by row;

-- name: free_table
-- Loose replies that a row may want, numbered among their equals.
create temp table if not exists free(digest blob not null, nth integer not null, id integer not null,
                                     primary key (digest, nth)) without rowid;

-- name: clear_free
-- An empty one to begin with.
delete from temp.free;

-- name: find_free
-- In order of payment, those with a mark last.
insert into temp.free(digest, nth, id)
select digest, row_number() over (partition by digest order by fault is not null, id), id
from temp.loose cross join paid using (id)
where digest in (select digest from request where state in (0, 3));

-- name: matched_table
-- Which row takes which reply.
create temp table if not exists matched(id integer primary key, row integer not null);

-- name: clear_matched
-- An empty one to begin with.
delete from temp.matched;

-- name: match
-- The k rows that want a digest take its k free replies, wherever they stand: also rows that did not move, beside one
-- that lost its answer's row, and rows that were given up.
insert into temp.matched(id, row)
select free.id, wanted.row from
  (select row, digest, row_number() over (partition by digest order by row) as nth
   from request where state in (0, 3) and digest in (select digest from temp.free)) as wanted
join temp.free as free on free.digest = wanted.digest and free.nth = wanted.nth;

-- name: settle_used
-- A reply that serves a row now is neither unused nor surplus any more.
update paid set surplus = null, unused = 0
where id in (select id from temp.matched) and (unused = 1 or surplus is not null);

-- name: settle_unused
-- Those that serve none are unused.
update paid set unused = 1
where id in (select id from temp.loose) and id not in (select id from temp.matched) and surplus is null and unused = 0;

-- name: link_matched
-- The rows take them.
update request set state = 2, answer = matched.id from temp.matched as matched where request.row = matched.row;

-- name: match_rejections
-- Rows that were rejected before are so still.
update request set state = 3
where state = 0 and row in (select row from temp.incoming) and digest in (select digest from rejection);

-- name: drop_incoming
-- Both of them.
drop table if exists temp.incoming;

-- name: zero_tally
-- Before a recount.
update tally set rows = 0;

-- name: recount_tally
-- After a rebuild the counters are counted.
update tally set rows = coalesce((select count(*) from request where request.state = tally.state), 0);

-- name: drop_twins
-- Twins are found anew at each start.
drop table if exists temp.twin;

-- name: twin_table
-- Rows that take another's outcome, to be looked up by row.
create temp table twin(row integer primary key, leader integer not null);

-- name: twin_index
-- So that a leader finds them.
create index temp.twin_by_leader on twin(leader);

-- name: find_twins
-- Rows that ask for the same as an earlier one, or as one that is answered, best with nothing left to wish for.
insert into temp.twin(row, leader)
select row, leader from (
  select row, state, first_value(row) over (partition by digest order by state = 2 desc, state = 4 desc, row) as leader
  from request)
where row <> leader and state in (0, 4);

-- name: give_up
-- Answers of twins that take another one now: paid like any, they may serve an equal row later.
update paid set surplus = 'twice'
where surplus is null and id in (
  select request.answer from temp.twin cross join request on request.row = twin.row
  join request as leader on leader.row = twin.leader
  where request.state = 4 and leader.state = 2 and request.answer <> leader.answer);

-- name: share
-- Every twin takes what its leader has.
update request set state = leader.state, answer = leader.answer
from temp.twin join request as leader on leader.row = twin.leader
where request.row = twin.row and request.state in (0, 4) and leader.state in (2, 3);

-- name: tally
-- Rows by state.
select state, rows from tally;

-- name: spend
-- Money and tokens over everything the checkpoint ever paid.
select coalesce(sum(replies), 0), coalesce(sum(unpriced), 0), coalesce(sum(prompt_tokens), 0),
       coalesce(sum(completion_tokens), 0), coalesce(sum(cost_nano), 0) from spend;

-- name: paid_twice
-- Replies that came to rows, or lines, that had their answer already; the last figure: of unknown price.
select count(*), coalesce(sum(cost_nano), 0), count(*) - count(cost_nano) from paid indexed by paid_aside
where (surplus is not null or unused = 1) and surplus = 'twice';

-- name: replaced
-- Replies that were cut off or did not fit and gave way to another one; the last figure likewise.
select count(*), coalesce(sum(cost_nano), 0), count(*) - count(cost_nano) from paid indexed by paid_aside
where (surplus is not null or unused = 1) and fault is not null and surplus in ('cut', 'invalid');

-- name: unpriced
-- Tokens that were paid for at a price nobody knew then.
select name.text, sum(prompt_tokens), sum(completion_tokens) from paid join name on name.id = paid.model
where cost_nano is null and prompt_tokens is not null group by 1;

-- name: spend_by_model
-- The same, apart.
select lane.text, model.text, replies, unpriced, prompt_tokens, completion_tokens, cost_nano
from spend join name as lane on lane.id = spend.lane join name as model on model.id = spend.model order by 1, 2;

-- name: aside_by_model
-- Of these, the replies that are no row's answer, and why: null is unused, and only a probe is cut off without a mark.
-- Summed up first in the order of the index, where nothing has to be sorted.
select lane.text, model.text, case when surplus = 'cut' and fault is null then 'probe' else surplus end as why,
       sum(replies), sum(unpriced), sum(cost_nano)
from (select lane, model, surplus, fault, count(*) as replies, count(*) - count(cost_nano) as unpriced,
             coalesce(sum(cost_nano), 0) as cost_nano
      from paid indexed by paid_aside where surplus is not null or unused = 1
      group by lane, model, surplus, unused, pruned, fault) as aside
join name as lane on lane.id = aside.lane join name as model on model.id = aside.model group by 1, 2, 3 order by 1, 2, 3;

-- name: prunable
-- Replies that are no row's answer and still have a body: whether they are wasted, their money, bytes of the bodies.
select surplus is not null, count(*), count(*) - count(cost_nano), coalesce(sum(cost_nano), 0),
       coalesce(sum(length(reply)), 0)
from paid indexed by paid_aside left join body using (id)
where (surplus is not null or unused = 1) and pruned = 0 group by 1;

-- name: prune_bodies
-- Their bodies go, or only those of the wasted ones.
delete from body where id in (
  select id from paid indexed by paid_aside
  where (surplus is not null or unused = 1) and pruned = 0 and (:unused or surplus is not null));

-- name: mark_pruned
-- So that nothing looks for them.
update paid indexed by paid_aside set pruned = 1
where (surplus is not null or unused = 1) and pruned = 0 and (:unused or surplus is not null);

-- name: vacuum
-- What was removed leaves room in the file; this gives it back to the disk.
vacuum;

-- name: file_bytes
-- How large the file is, and how much of it will be needed when it is packed.
select page_size * page_count, page_size * (page_count - freelist_count)
from pragma_page_size, pragma_page_count, pragma_freelist_count;

-- name: pulse_since
-- Replies and tokens since a slice of ten seconds.
select coalesce(sum(replies), 0), coalesce(sum(tokens), 0) from pulse where ten_s >= :ten_s;

-- name: events
-- The diary, newest last.
select at_ms, kind, detail from (select id, at_ms, kind, detail from event order by id desc limit :count) order by id;

-- name: rejections_by_fault
-- How many rows were rejected for what.
select rejection.fault, count(*) from request indexed by request_rejected join rejection using (digest)
where state = 3 group by 1 order by 2 desc, 1;

-- name: rejected_rows
-- Rejected rows with their reasons.
select row, rejection.fault, status, message, attempts
from request join rejection using (digest) where state = 3 order by row;

-- name: marked_answers
-- How many rows have an answer with a mark, by mark, and how often at most one of them was asked for again; null when
-- each keeps what it has for good. The cross join keeps SQLite from looking rows up by their answers.
select paid.fault, count(*), max(case when paid.retries < :for_good then paid.retries end)
from request cross join paid on paid.id = request.answer
where request.answer is not null and paid.fault is not null group by 1 order by 2 desc, 1;

-- name: outcomes
-- How every row ended, in input order, with the whole reply.
select request.row, request.digest, request.state, request.answer, body.dictionary, body.reply,
       model.text, finish.text, paid.prompt_tokens, paid.completion_tokens, paid.cached_tokens, paid.cost_nano,
       lane.text, paid.latency_ms, paid.attempts, paid.checksum, paid.fault,
       rejection.fault, rejection.message, rejection.attempts, paid.repair
from request
left join paid on paid.id = request.answer
left join body on body.id = request.answer
left join name as model on model.id = paid.model
left join name as finish on finish.id = paid.finish
left join name as lane on lane.id = paid.lane
left join rejection on request.state = 3 and rejection.digest = request.digest
order by request.row;

-- name: revision
-- How many outcomes were ever kept: an output written at this number shows them all.
select coalesce(sum(kept), 0) from run;
