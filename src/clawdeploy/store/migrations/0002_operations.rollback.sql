DROP TABLE container;
