-- Version 4: which paid replies are of use, and which bodies were removed.

-- A paid reply that no row holds any more, since its row was removed or edited; it may serve an equal row later.
alter table paid add column unused integer not null default 0
  check (unused in (0, 1) and (unused = 0 or surplus is null));

-- Its body was removed (`prune`). What it cost stays; it can never be an answer again.
alter table paid add column pruned integer not null default 0
  check (pruned in (0, 1) and (pruned = 0 or unused = 1 or surplus is not null));

update paid set unused = 1
where surplus is null and id not in (select answer from request where answer is not null);

-- All that was paid for and is no row's answer: a small part as a rule, and summed up without a look at the rest.
create index paid_aside on paid(lane, model, surplus, unused, pruned, fault, cost_nano)
where surplus is not null or unused = 1;

-- Rejected rows, so that they are counted by reason without a look at the others.
create index request_rejected on request(digest, state) where state = 3;

-- A row's answer is of use, and its body is there.
create trigger request_takes_what_is_of_use before update of answer on request
when new.answer is not null and (select unused = 1 or surplus is not null from paid where id = new.answer)
begin
  select raise(abort, 'a row took a reply that is unused or surplus');
end;

create trigger paid_is_pruned_without_body before update of pruned on paid
when new.pruned = 1 and exists (select 1 from body where id = new.id)
begin
  select raise(abort, 'a pruned reply has a body');
end;
