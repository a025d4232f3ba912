-- A rotation that is due is looked at again when the roster moves, too: who is being asked may have left, and what a look decided that saw the roster
-- before is void.
DROP TRIGGER conversations_became_due ON conversations;
CREATE TRIGGER conversations_became_due AFTER UPDATE ON conversations FOR EACH ROW
  WHEN ((OLD.rotation_due, OLD.epoch, OLD.roster_version, OLD.closed_at)
        IS DISTINCT FROM (NEW.rotation_due, NEW.epoch, NEW.roster_version, NEW.closed_at))
  EXECUTE FUNCTION keep_rotations_due();

-- A session's age is looked at where a message is sent under it: nobody looks for old ones any more.
DROP INDEX conversations_by_age;
