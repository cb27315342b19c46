DROP TABLE event;
DROP TABLE kept;
DROP TABLE container;
DROP TABLE suspension;
